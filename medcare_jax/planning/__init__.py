"""What a run will need and how fast it will be, from the TPU compiler, before a chip is rented."""
