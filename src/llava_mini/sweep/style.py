"""Style sheet of the report: plain, readable on paper and on a phone, where tables and plots scroll sideways."""

CSS = """
:root { --ink: #1f2937; --gray: #6b7280; --line: #e5e7eb; --soft: #f9fafb; --more: #047857; --less: #b91c1c;
  --mark: #92400e; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 32px 24px 64px; }
.lab { margin: 0; color: var(--gray); font-size: 14px; }
h1 { margin: 0; font-size: 30px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 44px 0 8px; font-size: 20px; }
.facts { margin: 4px 0 0; color: var(--gray); }
section > p { max-width: 76ch; }
.headline > p { max-width: none; }
.headline { margin: 24px 0 8px; padding: 4px 0 4px 20px; border-left: 4px solid #0072b2; }
.headline p { margin: 8px 0; }
.headline .first { font-size: 19px; line-height: 1.5; }
.missing { margin: 24px 0 8px; padding: 12px 20px; background: #fffbeb; border: 1px solid #fde68a; border-radius: 6px; }
.missing h2 { margin: 0; font-size: 16px; }
.missing ul { margin: 6px 0; padding-left: 20px; }
.missing li, .missing p { font-size: 14px; overflow-wrap: anywhere; }
.missing p { margin: 6px 0 0; }
figure { margin: 28px 0; }
figure img { display: block; width: 100%; max-width: 920px; height: auto; }
figcaption { margin-top: 6px; color: var(--gray); font-size: 14px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: separate; border-spacing: 0; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
thead th { color: var(--gray); font-weight: 500; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; background: #fff; background-clip: padding-box; position: sticky; left: 0; }
tbody tr:hover > * { background: var(--soft); }
tr.reference > * { background: #f3f4f6; font-weight: 600; }
tr.group > * { border-top: 2px solid var(--line); }
td.lacking { color: var(--less); }
small { margin-left: 8px; color: var(--gray); font-size: 12.5px; font-weight: 400; }
.difference .track { display: inline-block; position: relative; width: 110px; height: 12px; margin-right: 10px;
  vertical-align: middle; }
.configurations small, .kinds small { display: block; margin: 0; }
.configurations .number { display: inline-block; vertical-align: top; }
.configurations th:first-child { min-width: 150px; }
.configurations .track { width: 84px; }
.configurations th, .configurations td { padding-right: 12px; }
.configurations thead th { white-space: normal; vertical-align: bottom; }
.changes .difference .track { width: 180px; }
.track i { position: absolute; top: 0; }
.track .zero { height: 16px; top: -2px; border-left: 1px solid #9ca3af; }
.track .range { height: 4px; top: 4px; min-width: 2px; border-radius: 2px; background: #9ca3af; }
.track .dot { width: 8px; height: 8px; top: 2px; margin-left: -4px; border-radius: 50%; background: #6b7280; }
.track .beyond { border-radius: 0; }
.track .left { margin-left: -2px; clip-path: polygon(100% 0, 100% 100%, 0 50%); }
.track .right { margin-left: -6px; clip-path: polygon(0 0, 0 100%, 100% 50%); }
.more .range { background: #6ee7b7; } .more .dot { background: var(--more); } .more .number { color: var(--more); }
.less .range { background: #fca5a5; } .less .dot { background: var(--less); } .less .number { color: var(--less); }
.more .number, .less .number { font-weight: 600; }
.few { color: var(--gray); font-weight: 400; }
.mark { display: block; max-width: 170px; white-space: normal; line-height: 1.35;
  color: var(--mark); font-size: 12.5px; font-weight: 400; }
details { margin-top: 8px; }
summary { cursor: pointer; color: #0072b2; }
code, pre { font: 13px/1.5 ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace; }
pre { padding: 12px 16px; background: var(--soft); border: 1px solid var(--line); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  body { font-size: 15px; }
  main { padding: 20px 16px 48px; }
  h1 { font-size: 24px; }
  .headline { padding-left: 14px; }
  .headline .first { font-size: 17px; }
  figure img { width: 640px; max-width: none; }
  .difference .track { display: none; }
  small { display: block; margin: 0; }
  th, td { padding-right: 12px; }
  th, .changes td { white-space: normal; }
  tbody th { min-width: 84px; }
}
@media print { .scroll { overflow: visible; } }
"""
