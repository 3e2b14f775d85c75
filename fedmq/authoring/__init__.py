"""From a PyTorch module to a bundle: on the workstation of whoever brings a model."""
