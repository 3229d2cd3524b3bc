"""A stand-in Flatcar release made of Debian packages; `standin.main` says what it is and how it differs."""
