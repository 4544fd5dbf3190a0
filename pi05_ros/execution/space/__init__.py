"""Space: what the arm must not touch or leave, checked ahead of every command."""
