"""From files of dialogues to the batches of a run."""
