"""The JSON API, one file per noun; OPERATIONS in `web/routes.py` lists them."""
