"""The teacher's side: bidirectional many-step sampling, ODE-pair generation, merging of LoRA weights."""
