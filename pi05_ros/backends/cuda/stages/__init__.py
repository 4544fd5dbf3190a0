"""The three stages as sequences of kernel launches, and which kernels serve them."""
