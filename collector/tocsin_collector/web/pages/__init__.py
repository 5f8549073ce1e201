"""One file per page; `web/routes.py` lists them."""
