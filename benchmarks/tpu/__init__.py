"""Steps compiled for TPUs without one."""
