"""Colours and the style sheet of a page. Lines are told apart by colour-blind readers, too (after Okabe and Ito)."""

# class -> (on light, on dark)
CHART_COLOURS = {
    "ink": ("#1b1f24", "#e6e9ee"),
    "muted": ("#5b6470", "#9aa4b2"),
    "hairline": ("#d9dee5", "#343b46"),
    "page": ("#ffffff", "#14171c"),
    "panel": ("#f6f7f9", "#1c2027"),
    "blue": ("#0067a5", "#5cb3ee"),
    "orange": ("#c65102", "#f5a15b"),
    "green": ("#00795a", "#4fc7a1"),
    "purple": ("#8a4b9c", "#cf9ae0"),
    "grey": ("#6b7480", "#98a2b0"),
    "good": ("#00694e", "#5fd3ac"),
    "bad": ("#b3261e", "#ff8f85"),
    "warn": ("#8a5a00", "#f0c05a"),
}

CHART_STYLE = """
.chart text,text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
text.title{font-size:13px;font-weight:600}text.tick,text.unit{fill:var(--muted)}
text.pin{font:10px ui-monospace,monospace;fill:var(--muted)}
.grid{stroke:var(--hairline);stroke-width:1}.axis{stroke:var(--muted);stroke-width:1}
.mark,.level{stroke:var(--muted);stroke-width:1;stroke-dasharray:3 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.line.faint{opacity:.35;stroke-width:1}
.line.blue{stroke:var(--blue)}.line.orange{stroke:var(--orange)}.line.green{stroke:var(--green)}
.line.purple{stroke:var(--purple)}.line.grey{stroke:var(--grey)}.line.bad{stroke:var(--bad)}.line.warn{stroke:var(--warn)}
.fill.blue,.dot.blue{fill:var(--blue)}.fill.orange,.dot.orange{fill:var(--orange)}.fill.green,.dot.green{fill:var(--green)}
.fill.purple,.dot.purple{fill:var(--purple)}.fill.grey,.dot.grey{fill:var(--grey)}.fill.bad,.dot.bad{fill:var(--bad)}
.fill.warn,.dot.warn{fill:var(--warn)}
.node{fill:var(--panel);stroke:var(--hairline);stroke-width:1.5}.edge{fill:none;stroke:var(--muted);stroke-width:1.5}
.arrow{fill:var(--muted)}.paper{fill:var(--page)}
"""

PAGE_STYLE = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 64px;overflow-wrap:anywhere}table{overflow-wrap:normal}
h1{font-size:1.6rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:44px 0 10px;padding-top:14px;border-top:1px solid var(--hairline)}
h3{font-size:1rem;margin:22px 0 6px}
p{margin:8px 0;max-width:76ch}p.muted,.muted{color:var(--muted)}a{color:var(--blue)}
header p.subtitle{color:var(--muted);margin:4px 0 14px;overflow-wrap:anywhere}
.badge{display:inline-block;font-size:.8rem;font-weight:600;padding:2px 10px;border-radius:99px;border:1.5px solid;
vertical-align:middle;margin-left:10px;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
nav{font-size:.875rem;margin:16px 0 0}nav a{margin-right:14px;white-space:nowrap;text-decoration:none}
.summary{background:var(--panel);border:1px solid var(--hairline);border-radius:12px;padding:18px 20px;margin-top:16px}
.summary p{margin:6px 0;max-width:none;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:14px 0 10px}
.tile{background:var(--page);border:1px solid var(--hairline);border-radius:10px;padding:10px 14px}
.tile .label{font-size:.8rem;color:var(--muted)}.tile .value{font-size:1.45rem;font-weight:650;line-height:1.3}
.tile .value .was{color:var(--muted);font-weight:450}.tile .change{font-size:.85rem}
.notice{border-left:4px solid;border-radius:6px;padding:8px 14px;margin:12px 0;background:var(--panel)}
.notice p{color:var(--ink)}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:.875rem;line-height:1.4}
caption{text-align:left;color:var(--muted);padding:4px 0;caption-side:bottom}
th,td{text-align:left;vertical-align:top;padding:6px 10px;border-bottom:1px solid var(--hairline)}
th{color:var(--muted);font-weight:600;white-space:nowrap}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.code{font:.8125rem/1.45 ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere;min-width:9rem}
td.words{min-width:16rem}td:first-child{min-width:8.5rem}
tr:hover td{background:var(--panel)}
code{font:.875em ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--panel);border-radius:4px;padding:1px 4px;
overflow-wrap:anywhere}
pre{font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--panel);
border:1px solid var(--hairline);
border-radius:8px;padding:12px 14px;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;margin:10px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:14px;margin:12px 0}
figure{margin:0;border:1px solid var(--hairline);border-radius:10px;padding:6px;min-width:0}
figure.wide{grid-column:1/-1;overflow-x:auto}figure.wide svg{min-width:680px}
svg.chart{display:block;width:100%;height:auto}
.sample{border:1px solid var(--hairline);border-radius:10px;margin:14px 0;overflow:hidden;break-inside:avoid}
.sample .prompt{background:var(--panel);padding:10px 14px;white-space:pre-wrap;overflow-wrap:anywhere;font-weight:550}
.filter{font-size:.875rem;margin:10px 0}.filter label{display:inline-block;margin:0 14px 4px 0;cursor:pointer}
.filter input{margin:0 4px 0 0;vertical-align:-1px}
del,ins{text-decoration-thickness:1.5px;text-underline-offset:3px;border-radius:3px}
del{text-decoration:underline dotted var(--bad);background:color-mix(in srgb,var(--bad) 14%,transparent)}
ins{text-decoration:underline var(--good);background:color-mix(in srgb,var(--good) 16%,transparent)}
.answers{display:grid;grid-template-columns:1fr 1fr}
.answers>div{padding:10px 14px;white-space:pre-wrap;overflow-wrap:anywhere}
.answers>div+div{border-left:1px solid var(--hairline)}
.who{display:block;font-size:.8rem;color:var(--muted);margin-bottom:2px}
.marked{border:1px solid var(--hairline);border-radius:10px;margin:10px 0;padding:10px 14px;white-space:pre-wrap;
overflow-wrap:anywhere}.marked .prompt{color:var(--muted)}
.marked .trained{background:color-mix(in srgb,var(--green) 18%,transparent);font-weight:550}
.marked .untrained{background:color-mix(in srgb,var(--warn) 18%,transparent);font-style:italic}
details{margin:10px 0}summary{cursor:pointer;color:var(--blue)}
footer{margin-top:48px;color:var(--muted);font-size:.875rem}
@media(max-width:640px){main{padding:16px 12px 40px}.answers{grid-template-columns:1fr}
.answers>div+div{border-left:0;border-top:1px solid var(--hairline)}.badge{margin:6px 0 0}th,td{padding:5px 6px}
.charts{grid-template-columns:1fr}}
@media print{body{font-size:11pt}main{max-width:none;padding:0}nav,summary,.filter{display:none}
.scroll,figure.wide,pre{overflow:visible}figure.wide svg{min-width:0}table{font-size:8.5pt}
th,td{padding:3px 6px;overflow-wrap:anywhere}th{white-space:normal}td.words,td.code{min-width:0}
td:first-child{min-width:6.5rem}
details::details-content{content-visibility:visible;display:block;height:auto}
h2{break-after:avoid}figure,table,.tile{break-inside:avoid}.charts{grid-template-columns:1fr 1fr}
tr:hover td{background:none}}
"""


def page_style() -> str:
    """Return the whole sheet: light by default, dark where the reader's system asks for it, light again on paper."""
    light = "".join(f"--{name}:{colour};" for name, (colour, _) in CHART_COLOURS.items())
    dark = "".join(f"--{name}:{colour};" for name, (_, colour) in CHART_COLOURS.items())
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"{CHART_STYLE}{PAGE_STYLE}"
    )
