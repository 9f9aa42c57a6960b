/** The report's style sheet: one column, system fonts, neutral in light and dark, no network. */
export const style = `
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1c1e21; --soft: #5d646e; --rule: #e3e4e6; --grid: #ececee;
  --good: #1a7f4b; --bad: #b3372e; --good-ground: #e4f3ea; --bad-ground: #f9e7e4; --s1: #2f6fb5; --s2: #c2691c; --s3: #5b8c3a; --s4: #8257a8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --card: #1e2125; --ink: #e7e8ea; --soft: #a0a7b1; --rule: #32363c; --grid: #2a2e33;
    --good: #6cc893; --bad: #ee8d82; --good-ground: #1c3327; --bad-ground: #3d2422; --s1: #75aeea; --s2: #e59b58; --s3: #9cc77a; --s4: #bd97df; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 28px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 56px 0 4px; padding-top: 16px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 28px 0 2px; }
p { margin: 0 0 12px; max-width: 72ch; }
.soft, .note { color: var(--soft); }
.note { font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 18px 0 0; font-size: 14px; }
a { color: var(--s1); text-decoration: none; } a:hover { text-decoration: underline; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 28px 0 0; }
.headline > div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
.headline dt { font-size: 14px; color: var(--soft); } .headline dd { margin: 2px 0 0; }
.headline .big { font-size: 25px; line-height: 1.3; white-space: nowrap; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.headline .under { font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 2px 28px; margin: 16px 0 0; font-size: 14px; }
.facts div { display: flex; justify-content: space-between; gap: 16px; border-bottom: 1px solid var(--grid); padding: 4px 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.stage { margin-top: 28px; } .stage h3 { margin-top: 0; } .stage h3 span { font-weight: 400; color: var(--soft); font-size: 14px; margin-left: 8px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 12px; margin-top: 10px; }
.chart { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px 6px; }
.chart figcaption { font-size: 14px; display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; }
.chart .last { margin-left: auto; font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums; } .chart .last + .last { margin-left: 0; }
.chart .last b { color: var(--ink); font-weight: 600; }
.chart svg { display: block; width: 100%; height: auto; } .chart .empty { color: var(--soft); font-size: 14px; padding: 40px 0; text-align: center; }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px; vertical-align: middle; background: currentColor; }
.tick { font-size: 10.5px; fill: var(--soft); font-variant-numeric: tabular-nums; } .grid { stroke: var(--grid); } .axis { stroke: var(--rule); }
.dots, .line { fill: none; stroke: currentColor; stroke-linejoin: round; } .dots { stroke-width: 1; opacity: 0.28; } .line { stroke-width: 2; }
.s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); } .s4 { color: var(--s4); }
.scroll { overflow-x: auto; margin-top: 10px; } .scroll + .note { margin-top: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 36px 7px 0; border-bottom: 1px solid var(--grid); vertical-align: middle; white-space: nowrap; }
thead th { font-weight: 500; color: var(--soft); font-size: 14px; border-bottom-color: var(--rule); } tbody th { font-weight: 500; } td:last-child, thead th:last-child { width: 99%; }
.rate { display: inline-grid; grid-template-columns: 4.5em 120px auto; align-items: center; gap: 10px; }
.rate b { font-weight: 600; text-align: right; } .rate small { color: var(--soft); font-size: 13px; }
.rate svg { display: block; overflow: visible; } .rate .track { stroke: var(--rule); } .rate .range { stroke: var(--s1); stroke-width: 7; opacity: 0.4; }
.rate .dot { fill: var(--s1); } .rate .wanted { stroke: var(--ink); stroke-width: 1.5; }
.mark { font-weight: 600; padding: 0 6px; border-radius: 4px; font-size: 13px; white-space: nowrap; }
.mark.good { color: var(--good); background: var(--good-ground); } .mark.bad { color: var(--bad); background: var(--bad-ground); }
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 12px; margin-top: 12px; }
.item { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px; font-size: 14px; break-inside: avoid; }
.pictures { display: flex; gap: 10px; flex-wrap: wrap; margin-bottom: 8px; } .pictures figure { margin: 0; }
.pictures img { display: block; width: 128px; height: 128px; image-rendering: pixelated; border-radius: 4px; }
.pictures figcaption { font-size: 12px; color: var(--soft); margin-top: 2px; }
.lines { margin: 0; } .lines dt { color: var(--soft); font-size: 13px; margin-top: 6px; } .lines dd { margin: 0; line-height: 1.45; } .lines .truth { color: var(--soft); }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--rule); color: var(--soft); font-size: 14px; } footer li { max-width: 72ch; margin: 4px 0; }
@media print { body { background: none; } main { max-width: none; padding: 0; } nav { display: none; } }
`
