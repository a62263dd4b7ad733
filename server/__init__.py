"""What runs as a program: for now the command line, which needs nothing but the core."""
