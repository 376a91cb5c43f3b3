"""The web page: `twofold ui`. It needs the extra `ui` (gradio) and nothing of the network.

restoring.py: the library's calls. visits.py: what a visit leaves on the disk, and for
how long. work.py: what the page's buttons do, without gradio. html.py: fragments of the page. parts.py: its
layout, in gradio. page.py: its events. server.py: the web server around it. examples.py: photographs to try it with.
"""
