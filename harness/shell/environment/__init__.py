"""What is installed here: devices, graphics cards, frameworks and their versions, git revisions."""
