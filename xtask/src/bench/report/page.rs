//! Figures as one page of charts that needs nothing else: no network, no script, no font.
//!
//! Which number of Services is shown is chosen by radio buttons, which the style sheet looks at.

use std::fmt::Write as _;

use xtask::figures::Figures;

use super::answer::{Answer, answer};
use super::markup::{escape, json_in_script, list, paragraph, section};
use super::{Form, cards, control, names, programs, scaling, select, tables};

const STYLE: &str = include_str!("page.css");

/// The page.
pub(in super::super) fn html(figures: &Figures) -> String {
    let json = serde_json::to_string(figures).unwrap_or_default();
    let body = [
        head(figures),
        by_services(figures),
        scaling::html(figures),
        programs::html(figures),
        control::html(figures),
        more_tables(figures),
        left_out(figures),
        circumstances(figures),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n\
         <meta name=color-scheme content=\"light dark\">\n\
         <link rel=icon href=\"data:,\">\n\
         <title>What Services cost</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n\
         <main>\n{body}</main>\n\
         <script type=\"application/json\" id=figures>{}</script>\n</body>\n</html>\n",
        choice_style(figures),
        json_in_script(&json)
    )
}

fn head(figures: &Figures) -> String {
    let answer = answer(figures).map_or_else(String::new, |answer| answer_html(&answer));
    format!(
        "<header>\n<h1>What Services cost: Beeline beside kube-proxy and beside no proxy</h1>\n\
         {answer}<p class=where>{}. {}. {}.</p>\n</header>\n",
        escape(&names::machine(&figures.machine)),
        escape(&names::settings(&figures.settings)),
        escape(&figures.day),
    )
}

fn answer_html(answer: &Answer) -> String {
    let (first, others) = answer
        .sentences
        .split_first()
        .map_or(("", [].as_slice()), |(first, others)| (first, others));
    let tiles: String = answer
        .tiles
        .iter()
        .map(|tile| {
            format!(
                "<li class=\"tile {}\"><b>{}</b> {}</li>\n",
                tile.class,
                escape(&tile.value),
                escape(&tile.what)
            )
        })
        .collect();
    format!(
        "<p class=answer>{} {}</p>\n<h2 class=tiles-title>New TCP connections from a pod: rate \
         through Beeline, × that of</h2>\n<ul class=tiles>\n{tiles}</ul>\n",
        escape(first),
        escape(&others.join(" "))
    )
}

/// What belongs to one number of Services, of which the greatest is shown at first.
fn by_services(figures: &Figures) -> String {
    let numbers = select::numbers_of_services(figures);
    let sections: Vec<(u32, String)> = numbers
        .into_iter()
        .map(|services| (services, cards::sections(figures, services)))
        .filter(|(_, sections)| !sections.is_empty())
        .collect();
    let Some((most, _)) = sections.last() else {
        return String::new();
    };
    let (mut inputs, mut labels) = (String::new(), String::new());
    for (services, _) in &sections {
        let checked = if services == most { " checked" } else { "" };
        let _in_memory = write!(
            inputs,
            "<input type=radio name=services id=services-{services}{checked}>"
        );
        let _in_memory = write!(
            labels,
            "<label for=services-{services}>{}</label>",
            names::services(*services)
        );
    }
    let sections_of_all: String = sections
        .iter()
        .map(|(services, sections)| format!("<div class=at id=at-{services}>\n{sections}</div>\n"))
        .collect();
    format!(
        "<div class=by-services>\n{inputs}\n<div class=choice><span>Services on the node:</span> \
         {labels}</div>\n{sections_of_all}</div>\n"
    )
}

/// Shows what belongs to the number that is chosen.
fn choice_style(figures: &Figures) -> String {
    let numbers = select::numbers_of_services(figures);
    let rules = numbers.into_iter().map(|services| {
        let input = format!("#services-{services}");
        let label = format!("~.choice label[for=services-{services}]");
        format!(
            "{input}:checked~#at-{services}{{display:block}}\n\
             {input}:checked{label}{{background:var(--strong);color:var(--paper)}}\n\
             {input}:focus-visible{label}{{outline:3px solid var(--packet-edge)}}\n"
        )
    });
    rules.collect()
}

/// What has no chart.
fn more_tables(figures: &Figures) -> String {
    let all = [
        tables::connections(figures, Form::Markdown),
        tables::absolute(figures),
        tables::program_calls(figures),
        tables::nodes(figures),
    ];
    let folded: String = all
        .iter()
        .map(|table| table.folded(table.title()))
        .collect();
    section("tables", "More tables", "", &folded)
}

fn left_out(figures: &Figures) -> String {
    section(
        "left-out",
        "What was left out",
        "",
        &list(&figures.left_out),
    )
}

fn circumstances(figures: &Figures) -> String {
    let command = format!("<pre><code>{}</code></pre>\n", escape(&figures.command));
    let how = [
        "Nodes made of network namespaces are up at the same time: one without any proxy, and for \
         each number of Services one with Beeline and one with kube-proxy's rules of each mode.",
        "Clients on all of them take turns of some milliseconds, in another order in every round, \
         so that what disturbs the machine disturbs all alike. Ratios and differences are those of \
         one round; shown are their medians, and quartiles as spread.",
        "No proxy: a pod dialled by its own address on the node without any proxy. Socket edge: a \
         Service dialled by a process whose sockets Beeline points at a backend. Packet edge: one \
         dialled by a process whose packets Beeline translates at its device.",
        "iptables are kube-proxy's rules in iptables-nft, iptables-legacy the same rules in the \
         older tables, nftables those of its nftables mode.",
        "Processor time is that of client, kernel and server together.",
    ];
    let not_shown = [
        "Real networks and network cards: all nodes are on one machine.",
        "Many processors at once: clients and servers share one.",
        "kube-proxy itself: its rules are loaded ready-made, so that its daemon does not disturb. \
         What its daemon needs was measured elsewhere, where it is shown.",
        "Other machines: figures of two machines cannot be compared, ratios can.",
    ];
    let body = [
        paragraph(&format!(
            "{}. {}. {}.",
            names::machine(&figures.machine),
            names::settings(&figures.settings),
            figures.day
        )),
        command,
        list(&how.map(str::to_owned)),
        "<h3>What is not shown</h3>\n".to_owned(),
        list(&not_shown.map(str::to_owned)),
    ];
    section("how", "How it was measured", "", &body.concat())
}
