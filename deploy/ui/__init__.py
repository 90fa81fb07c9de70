"""`vcppo ui`: pages of runs in a browser, live and afterwards. It reads run folders and writes nothing."""
