"""What several examples use: pieces of work, options, checkpoints, the style of pictures."""
