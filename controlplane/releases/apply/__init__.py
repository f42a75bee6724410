"""Policy files on the server: the change that makes the database say what they say."""
