"""What the shell prints: tables of results, the layers of a network, progress.

axes             the keys that differ between the runs of a sweep
leaderboard      a row per setting, with mean and spread over seeds
phases           where the time of a run goes
network          the layers of a network
network_drawing  the same as SVG
export_readme    the files that describe an exported model
progress         the reporter of a command, with plain lines for logs
progress_bars    bars for a terminal
progress_text    plans and results in words
tables           the console, and the style of all tables
"""
