"""What a configuration of nginx needs to run as any user, in the foreground."""

from __future__ import annotations

# To be formatted with `folder`, where nginx writes; the block `http` is to be continued and closed.
NGINX_START = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""
