"""The science: data, models, the training loop, bundles. Knows PyTorch, but neither Ray nor MLflow nor HTTP."""
