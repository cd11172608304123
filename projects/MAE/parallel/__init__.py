"""How a model is divided over devices, and what that costs in time and memory."""
