"""The page's style sheet: light and dark, readable on a phone."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #555; --paper: #fff;
  --panel: #f4f4f2; --line: #d5d5d0; --link: #0060a0; --flag: #a33c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --soft: #b3b3ae;
  --paper: #16181a; --panel: #212427; --line: #3d4246; --link: #7cc0f5;
  --flag: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: .6em 0 .2em; overflow-wrap: anywhere; }
h2 { font-size: 1.5rem; margin: 2.2em 0 .6em; padding-top: .5em;
  border-top: 2px solid var(--line); }
h3 { font-size: 1.2rem; margin: 1.8em 0 .4em; overflow-wrap: anywhere; }
h4 { font-size: 1.05rem; margin: 1.6em 0 .3em; }
p, li, figcaption { max-width: 46rem; overflow-wrap: break-word; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0;
  list-style: none; }
.subtitle, .protocol, figcaption, caption { color: var(--soft); }
.subtitle, .protocol { overflow-wrap: anywhere; }
.note, .flag { padding: .5rem .8rem; border-left: 4px solid var(--line);
  background: var(--panel); }
.flag { border-color: var(--flag); color: var(--flag); font-weight: 600; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .2rem 0; font-size: 16px; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; }
thead th { font-weight: 600; }
.facts td, .facts th { overflow-wrap: anywhere; }
.facts th { min-width: 7rem; }
.interval { color: var(--soft); white-space: nowrap; }
code { font-size: 16px; overflow-wrap: anywhere; }
figure { margin: .6rem 0 1.6rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px;
  background: #fff; }
.enlarge:checked ~ .scroll img { max-width: none; }
figure .scroll { margin: 0; }
.enlarge + label { font-size: 16px; padding-left: .4rem; color: var(--soft); }
@media (min-width: 64rem) { .enlarge, .enlarge + label { display: none; } }
figcaption { margin-top: .4rem; font-size: 16px; }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
details { margin: .4rem 0; }
@media print { details > * { display: revert; } }
"""
