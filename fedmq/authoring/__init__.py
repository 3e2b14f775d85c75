"""Where a PyTorch module becomes the graphs that a gateway trains with; a workstation's work, never a gateway's."""
