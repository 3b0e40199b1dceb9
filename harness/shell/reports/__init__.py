"""Tables, drawings and progress on the terminal."""
