"""Models as values: checked graphs of standard operators, and what makes, runs and exports them."""
