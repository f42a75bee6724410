"""Policy files as JSON values: what they may say, and what is wrong with them. Both sides of REST read them so."""
