"""Models of the protocols, searched whole: `make proof`. docs/proof.md maps their steps to the code."""
