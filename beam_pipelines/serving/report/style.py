"""The report's one style sheet: light and dark by the reader's system, one column on a phone, black on white on paper. Fetches nothing."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5a6575;--line:#dfe3e9;--tint:#eef1f5;--link:#0b5cad;
--good:#1a7f4b;--warn:#9a6200;--bad:#c02b2b;--written:#2f9e6b;--dead:#d64545;--duplicate:#b7791f;--filtered:#7c8aa0;--open:#7b61c9;--refused:#c2508a;
--late:#d97706;--read:#3b6ea8;--bar:#3b6ea8}
@media (prefers-color-scheme:dark){:root{--bg:#11151b;--card:#1a2029;--ink:#e6eaf0;--soft:#9aa6b6;--line:#2d3643;--tint:#232b36;--link:#7db7f0;
--good:#4cc38a;--warn:#e5b455;--bad:#ff7b72;--written:#4cc38a;--dead:#ff7b72;--duplicate:#e5b455;--filtered:#8b98ab;--open:#a891f0;--refused:#e88bb8;
--late:#f0a04b;--read:#6ea8e5;--bar:#6ea8e5}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:break-word;-webkit-text-size-adjust:100%}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 20px}
header{padding-top:28px}footer{padding-bottom:32px;color:var(--soft);font-size:13px}
h1{font-size:22px;line-height:1.25;margin:0 0 4px}h2{font-size:17px;margin:0 0 10px}h3{font-size:14px;margin:18px 0 6px}
p{margin:0 0 10px}a{color:var(--link)}.soft{color:var(--soft)}.small{font-size:13px}
code{overflow-wrap:anywhere}code,pre{font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--tint);border-radius:6px;padding:8px 10px;margin:4px 0 0;white-space:pre-wrap;overflow-wrap:anywhere}
section,.verdict{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:16px 0}
.verdict{border-left:6px solid var(--tone)}.good{--tone:var(--good)}.warn{--tone:var(--warn)}.bad{--tone:var(--bad)}.plain{--tone:var(--soft)}
.said{font-size:17px;margin:8px 0 6px}.fails{margin:8px 0;padding-left:20px}.fails li{margin:2px 0}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:13px;font-weight:600;color:var(--tone);border:1.5px solid var(--tone);white-space:nowrap}
.verdict>.badge{font-size:15px;padding:2px 14px;background:var(--tone);color:var(--card)}
.sum{margin:10px 0 0;padding:0;list-style:none;font-variant-numeric:tabular-nums}.sum li{margin:2px 0}.sum b{white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(118px,1fr));gap:10px;margin:16px 0}
.tile{min-width:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px;border-top:3px solid var(--tone,var(--line))}
.tile dt{color:var(--soft);font-size:13px}.tile dd{margin:0;font-size:21px;font-weight:600;line-height:1.25;font-variant-numeric:tabular-nums}
.tile dd.more{font-size:12.5px;font-weight:400;color:var(--soft);line-height:1.35}dl{margin:0}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13.5px;margin:0 0 4px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--soft);font-size:12.5px;border-bottom:1px solid var(--line);padding:4px 12px 4px 0;vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:6px 12px 6px 0;vertical-align:top}tr:last-child>td{border-bottom:0}
th.n,td.n{text-align:right}td.n,th{white-space:nowrap}.scroll{overflow-x:auto}td:last-child,th:last-child{padding-right:0}tr.here td{font-weight:600}td.grow{width:45%}
.meter{display:block;background:var(--tint);border-radius:3px;height:9px;margin-top:6px;overflow:hidden;min-width:70px}
.meter i{display:block;height:100%;background:var(--tone,var(--bar));border-radius:3px}
.facts{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:4px 18px}.facts dt{color:var(--soft)}.facts dd{margin:0}
.sample{border-left:3px solid var(--line);padding:2px 0 2px 12px;margin:10px 0}
figure{margin:0 0 14px}.dense td{padding-top:3px;padding-bottom:3px}.facts+.scroll{margin-top:10px}figcaption{font-size:13.5px;color:var(--soft);margin-bottom:4px}
.plot{border-bottom:1px solid var(--soft);border-top:1px dashed var(--line);position:relative;margin-top:18px}
.plot svg{display:block;width:100%;height:130px}.plot .top{position:absolute;top:-18px;left:0;font-size:12px;color:var(--soft)}
.axis{display:flex;justify-content:space-between;gap:8px;font-size:12px;color:var(--soft);margin-top:3px}.axis span:nth-child(2){text-align:center}.axis span:last-child{text-align:right}
.plot rect{fill:var(--bar)}details{margin:8px 0 0}summary{cursor:pointer;color:var(--link);font-size:13.5px}
.flow{display:block;width:100%;height:auto;max-height:640px}.flow text{fill:var(--ink);font-size:13px}.flow .soft{fill:var(--soft);font-size:12px}.narrow{display:none}
.f-written{--f:var(--written)}.f-dead{--f:var(--dead)}.f-duplicate{--f:var(--duplicate)}.f-filtered{--f:var(--filtered)}.f-open{--f:var(--open)}
.f-refused{--f:var(--refused)}.f-outside{--f:var(--soft)}.f-read{--f:var(--read)}.f-late{--f:var(--late)}
.flow rect{fill:var(--f)}.flow path{fill:var(--f);opacity:.32}.key{display:inline-block;width:10px;height:10px;border-radius:2px;background:var(--f);margin-right:6px}
@media (max-width:640px){main,header,footer{padding-left:12px;padding-right:12px}section,.verdict{padding:14px;margin:12px 0}.wide{display:none}.narrow{display:block}
.said{font-size:16px}.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:8px 10px}.tile dd{font-size:18px}.facts{grid-template-columns:fit-content(42%) 1fr;gap:4px 12px;font-size:14px}
.scroll{overflow:visible}table.cards,.cards tbody{display:block}.cards thead{position:absolute;clip-path:inset(50%);height:1px;width:1px;overflow:hidden}
.cards tr{display:flex;flex-wrap:wrap;gap:1px 16px;border-bottom:1px solid var(--line);padding:8px 0}.cards tr:last-child{border-bottom:0}
.cards td,.cards td.n{display:block;border:0;padding:0;text-align:left;white-space:normal;width:auto;max-width:100%}.cards td.grow,.cards td[data-label=path],.cards td[data-label=source]{flex-basis:100%}
.cards td[data-label]::before{content:attr(data-label) " ";color:var(--soft);font-size:12.5px}.cards td:empty{display:none}.cards td:first-child::before{content:none}
.cards td>div{display:inline}.cards td>div>.meter{display:inline-block;width:84px;min-width:0;margin:0 0 0 8px}.cards td>.meter{margin:3px 0}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--tint:#f2f2f2;--link:#000;--good:#12633a;--warn:#7a4d00;--bad:#a11d1d;--bar:#3b6ea8;
--written:#2f9e6b;--dead:#c23636;--duplicate:#b7791f;--filtered:#7c8aa0;--open:#7b61c9;--late:#d97706;--read:#3b6ea8;--refused:#c2508a;color-scheme:light}
body{font-size:11px}main,header,footer{max-width:none;padding:0}nav{display:none}section,.verdict{break-inside:auto;border-radius:0;padding:10px 12px;margin:8px 0}
.tiles{grid-template-columns:repeat(4,1fr)}figure,tr,.sample,.tiles,.verdict{break-inside:avoid}h2,h3{break-after:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}details.picture{display:none}details::details-content{content-visibility:visible;block-size:auto}
table{font-size:10.5px}.plot svg{height:90px}}
"""
