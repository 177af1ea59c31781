"""Generated text on its way out: from updates of the engine to OpenAI's JSON, whole or as a stream."""
