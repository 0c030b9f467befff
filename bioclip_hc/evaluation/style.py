"""How a report's page looks: in both colour schemes, on a telephone, in print."""

CSS = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem clamp(.8rem,3vw,2rem) 3rem;max-width:80rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.25;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.5rem 0 .7rem;border-bottom:1px solid var(--faint)}
h4{font-size:.95rem;margin:1.6rem 0 .4rem;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;padding:0;margin:0;font-size:.9rem}
a{color:var(--series-0)}
:focus-visible{outline:2px solid var(--series-0);outline-offset:2px}
.note,figcaption,small,.faint,details>p{color:var(--muted)}
.card figcaption{color:var(--ink)}
.card .faint{color:var(--muted)}
.note,figcaption,details>p{font-size:.85rem;max-width:60rem}
ul.note{padding-left:1.1rem;overflow-wrap:anywhere}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem;width:100%;margin:1rem 0 .6rem}
caption{text-align:left;font-weight:600;font-size:1rem;padding:.2rem 0 .3rem;overflow-wrap:anywhere}
th,td{padding:.3rem .4rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--faint)}
th{font-weight:600}
tbody th{font-weight:400}
th:first-child,.listing th,.listing td{text-align:left}
figcaption{margin-top:.3rem;overflow-wrap:anywhere}
tbody th,.listing td{overflow-wrap:anywhere}
tbody th{min-width:8rem;max-width:16rem}
.scores small{display:block;font-size:.72rem;line-height:1.2;white-space:nowrap}
.baseline{background:var(--soft)}
.published>*,.difference>*{color:var(--muted);font-size:.82rem;padding-top:0}
.published th,.difference th{padding-left:1.2rem;font-style:italic}
tr:has(+.published)>*,.published>*{border-bottom:0;padding-bottom:.1rem}
details{margin:.4rem 0 .8rem}
summary{cursor:pointer;padding:.15rem 0;overflow-wrap:anywhere}
section>details>summary{font-weight:600}
#what-goes-wrong>details+details{border-top:1px solid var(--faint);margin:0;padding:.3rem 0}
.grid{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));align-items:start;
margin:.8rem 0}
figure{margin:0;max-width:34rem;break-inside:avoid}
figure h4{margin:0 0 .4rem}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
figure svg>text{font-size:11px;fill:var(--ink)}
.scroll{overflow-x:auto}
.confusion{width:auto;font-size:.8rem;margin:.3rem 0}
.confusion th,.confusion td{padding:.2rem;border:1px solid var(--paper)}
.confusion thead th{vertical-align:bottom;font-weight:400}
.confusion thead span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:10rem;white-space:nowrap}
.confusion tbody th{max-width:12rem;min-width:6rem}
.confusion td{width:2.3rem;text-align:center;
background:color-mix(in srgb,var(--hue) calc(var(--share)*.45),var(--soft))}
.confusion .right{--hue:var(--series-2)}
.confusion .wrong{--hue:var(--series-1)}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media screen and (max-width:70rem){
.scores,.scores tbody,.scores caption{display:block}
.scores thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.scores tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(5.2rem,1fr));padding:.35rem 0;
border-bottom:1px solid var(--faint)}
.scores tr:has(+.published),.scores .published{border-bottom:0;padding-bottom:0}
.scores tr>*{border:0;padding:.12rem .3rem;max-width:none;text-align:left}
.scores tr>th{grid-column:1/-1;font-weight:600}
.scores td::before{content:attr(data-head);display:block;font-size:.72rem;color:var(--muted)}
}
@media screen and (max-width:44rem){
.listing,.listing tbody,.listing caption{display:block}
.listing thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.listing tr{display:grid;grid-template-columns:repeat(2,1fr);padding:.35rem 0;border-bottom:1px solid var(--faint)}
.listing tr>*{border:0;padding:.12rem .3rem;max-width:none}
.listing tr>th{grid-column:1/-1;font-weight:600}
.listing td::before{content:attr(data-head);display:block;font-size:.72rem;color:var(--muted)}
.confusion{font-size:.68rem}
.confusion td{width:1.45rem;padding:.15rem 0}
.confusion th{padding:.15rem}
.confusion tbody th{min-width:4.5rem;max-width:6rem}
}
@media print{
body{max-width:none;padding:0}
html{font-size:10px}
nav{display:none}
details::details-content{content-visibility:visible;height:auto}
tr,.card{break-inside:avoid}
h2,h4,caption,summary{break-after:avoid}
}
"""
