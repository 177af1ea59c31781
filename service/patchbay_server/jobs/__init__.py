"""Long work beside the serving process: a queue that survives crashes, and the worker processes that empty it."""
