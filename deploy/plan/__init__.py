"""`vcppo plan`: what a config needs before anything is started."""
