"""`vcppo` on a machine that is said to have one GPU of 80 GiB. torch is built for the CPU, and so computes there.

python one_gpu.py up -c CONFIG launcher.share_gpus=true
"""

from __future__ import annotations

import sys

from vcppo.deploy.cli import main
from vcppo.deploy.launch import launcher
from vcppo.deploy.placement.gpus import Device

launcher.devices_of = lambda config: [Device("0", 80 * 2**30, gpu="GPU-0")]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
