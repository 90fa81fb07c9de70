"""What both sides share: config, trajectories, wire, buffer, logs, tasks. Imports neither torch, vllm nor deepspeed."""
