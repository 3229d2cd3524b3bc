"""Publishing extensions: from a list of versions to a folder that a web server can serve as a bakery."""
