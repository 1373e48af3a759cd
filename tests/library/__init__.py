"""An app whose models are captured, each in the way that its docstring says."""
