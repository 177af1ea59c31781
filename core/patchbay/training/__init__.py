"""Training EEG models: pre-training on recordings without labels. Knows nothing of deltas, of the web and of stores."""
