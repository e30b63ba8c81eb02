"""What a lossy codec costs on real models: scripts that anyone can run again."""
