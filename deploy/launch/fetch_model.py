"""`python -m vcppo.deploy.launch.fetch_model OWNER/NAME`: a hub's model into the cache.

All other processes can then run without the internet.
"""

from __future__ import annotations

import sys

from vcppo.common.errors import EXIT_FAILURE, EXIT_OK
from vcppo.common.text.yaml_text import one_line


def main(model: str) -> int:
    """Download the model into the Hugging Face cache. Returns the exit code; the reason of a failure is printed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Weights once: many repositories hold them in older formats too.
        path = snapshot_download(model, ignore_patterns=["*.bin", "*.pth", "*.gguf", "*.onnx", "original/*"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        print(
            f"ERROR model.path = {model!r} can't be fetched: {one_line(error)} (If it is a folder of yours: containers "
            "see what lies in the folder named by DATA, as /data/…)"
        )
        return EXIT_FAILURE
    print(f"{model} is in {path}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
