"""How a model is cut over devices, and what that costs in time and memory."""
