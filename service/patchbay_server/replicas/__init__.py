"""Several engines behind one address: which of them answers what. Only `fleet` and `router` import Ray."""
