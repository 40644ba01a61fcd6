"""What a compiled step sends between devices."""
