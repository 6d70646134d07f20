"""Export of a trained policy to a file that runs without policysmith."""
