"""What a GPU computes, against float64 on the CPU, and how fast: `make gpu-test`.

Every check takes the device as a parameter. With `--device cpu` the same code runs without a GPU.
"""
