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
        scaling::html(figures),
        by_services(figures),
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
         <main>\n{}{}{body}</main>\n\
         <script type=\"application/json\" id=figures>{}</script>\n</body>\n</html>\n",
        choice_style(figures),
        head(figures),
        navigation(&body),
        json_in_script(&json)
    )
}

/// Links to the parts that are there.
fn navigation(body: &str) -> String {
    let parts = [
        ("scaling", "cost by Services"),
        ("by-services", "rate, latency, processor time"),
        ("programs", "a packet in programs"),
        ("instructions", "verified instructions"),
        ("control", "control plane"),
        ("tables", "more tables"),
        ("left-out", "left out"),
        ("how", "how it was measured"),
    ];
    let links: Vec<String> = parts
        .into_iter()
        .filter(|(id, _)| body.contains(&format!("id=\"{id}\"")))
        .map(|(id, title)| format!("<a href=\"#{id}\">{title}</a>"))
        .collect();
    format!("<nav>{}</nav>\n", links.join(" "))
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
    let sentences: String = answer
        .sentences
        .iter()
        .map(|sentence| format!("<p class=answer>{}</p>\n", escape(sentence)))
        .collect();
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
        "{sentences}<h2 class=tiles-title>New TCP connections from a pod: rate through Beeline, × \
         that of</h2>\n<ul class=tiles>\n{tiles}</ul>\n"
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
    let choice = if sections.len() > 1 {
        format!("<div class=choice><span>Services:</span> {labels}</div>\n")
    } else {
        String::new()
    };
    format!(
        "<div class=by-services id=\"by-services\">\n{inputs}\n{choice}{sections_of_all}</div>\n"
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
        "<h3>What clients do</h3>\n".to_owned(),
        list(&names::MEASURES.map(str::to_owned)),
        "<h3>What is not shown</h3>\n".to_owned(),
        list(&not_shown.map(str::to_owned)),
    ];
    section("how", "How it was measured", "", &body.concat())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{sample, series, text};
    use xtask::figures::Measure;

    use super::*;

    /// The page without its style sheet and its JSON, which hold no tags.
    fn tags_of(page: &str) -> String {
        let mut rest = page;
        let mut tags = String::new();
        for (start, end) in [("<style>", "</style>"), ("<script", "</script>")] {
            let (before, from) = rest.split_once(start).unwrap();
            let (_, after) = from.split_once(end).unwrap();
            tags.push_str(before);
            rest = after;
        }
        tags + rest
    }

    /// The names of elements that are not ended, or ended without a start.
    fn unbalanced(page: &str) -> Vec<String> {
        let mut open = Vec::new();
        for tag in tags_of(page).split('<').skip(1) {
            let tag = tag.split_once('>').unwrap().0;
            let name = tag.trim_start_matches('/');
            let name = name.split([' ', '/', '\n']).next().unwrap().to_owned();
            let is_alone = tag.ends_with('/')
                || ["!doctype", "meta", "link", "input"].contains(&name.as_str());
            if tag.starts_with('/') {
                if open.last() == Some(&name) {
                    open.pop();
                } else {
                    open.push(format!("/{name}"));
                }
            } else if !is_alone {
                open.push(name);
            }
        }
        open
    }

    fn json_of(page: &str) -> &str {
        let from = page.split_once("id=figures>").unwrap().1;
        from.split_once("</script>").unwrap().0
    }

    #[test]
    fn every_measure_and_every_way_is_shown() {
        let page = html(&sample::full());
        for measure in select::REQUESTS.into_iter().chain(Measure::CALLS) {
            let heading = format!("<h4>{}</h4>", names::measure(measure));
            assert!(page.contains(&heading), "{heading}");
        }
        for series in series::ALL {
            let mark = format!("<path d=\"{}\">", series.mark());
            assert!(page.contains(&series.name()), "{}", series.name());
            assert!(page.contains(&mark), "{mark}");
        }
        for other in [
            "pod_ingress",
            "Cold start",
            "Rolling restart",
            "Memory",
            "</h2>",
        ] {
            assert!(page.contains(other), "{other}");
        }
    }

    #[test]
    fn the_figures_are_inside() {
        let figures = sample::full();
        let page = html(&figures);
        let inside: Figures = serde_json::from_str(json_of(&page)).unwrap();
        let said = [&figures, &inside].map(|figures| text::text(figures, Form::Markdown));
        assert!(said[0] == said[1] && !said[0].is_empty());
        assert_eq!(inside.traffic.len(), figures.traffic.len());
    }

    #[test]
    fn nothing_is_fetched_and_nothing_runs() {
        let page = html(&sample::full());
        for reference in [
            "http:", "https:", "//cdn", "@import", "url(", " src=", "onclick",
        ] {
            assert!(!page.contains(reference), "{reference}");
        }
        assert_eq!(page.matches("<script").count(), 1);
    }

    #[test]
    fn every_chart_has_a_title_a_unit_and_a_table() {
        let page = html(&sample::full());
        let figures: Vec<&str> = page.split("<figure").skip(1).collect();
        assert!(figures.len() > 100, "{}", figures.len());
        for figure in figures {
            let figure = figure.split_once("</figure>").unwrap().0;
            assert!(!figure.contains("<h4></h4>"), "{figure}");
            assert!(figure.contains(" is better</p>"), "{figure}");
            assert_eq!(figure.matches("<svg class=\"chart").count(), 1, "{figure}");
            assert!(figure.contains("role=\"img\""), "{figure}");
            assert!(!figure.contains("<title></title>"), "{figure}");
            assert!(figure.contains("<table>"), "{figure}");
        }
    }

    #[test]
    fn tags_are_balanced_and_identifiers_are_not_used_twice() {
        for figures in [sample::full(), sample::empty()] {
            let page = html(&figures);
            assert_eq!(unbalanced(&page), Vec::<String>::new());
            let tags = tags_of(&page);
            let identifiers: Vec<&str> = tags
                .split(" id=")
                .skip(1)
                .map(|rest| rest.split([' ', '>']).next().unwrap().trim_matches('"'))
                .collect();
            let different: BTreeSet<&&str> = identifiers.iter().collect();
            assert_eq!(different.len(), identifiers.len(), "{identifiers:?}");
        }
    }

    #[test]
    fn the_greatest_number_of_services_is_shown_at_first() {
        let page = html(&sample::full());
        assert_eq!(page.matches(" checked>").count(), 1);
        assert!(page.contains("id=services-30000 checked>"));
        for services in sample::SERVICES {
            assert!(page.contains(&format!("#services-{services}:checked~#at-{services}")));
        }
    }

    #[test]
    fn what_was_not_measured_leaves_no_trace() {
        let page = html(&sample::empty());
        for part in [
            "<figure",
            "<table",
            "left out",
            "NaN",
            "class=choice",
            "class=tiles",
        ] {
            assert!(!tags_of(&page).contains(part), "{part}");
        }
    }

    /// Of two colours as in `#0b4fae`, by the rules of WCAG 2.
    fn contrast(one: &str, other: &str) -> f64 {
        let brightness = |colour: &str| {
            let channel = |at: usize| {
                let value = u8::from_str_radix(&colour[at..at + 2], 16).unwrap();
                let value = f64::from(value) / 255.0;
                if value <= 0.040_45 {
                    value / 12.92
                } else {
                    ((value + 0.055) / 1.055).powf(2.4)
                }
            };
            0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
        };
        let (one, other) = (brightness(one) + 0.05, brightness(other) + 0.05);
        (one / other).max(other / one)
    }

    #[test]
    fn text_and_marks_stand_out_in_light_and_in_dark() {
        let schemes: Vec<&str> = STYLE.split(":root {").skip(1).collect();
        assert_eq!(schemes.len(), 3, "light, dark, print");
        for scheme in schemes {
            let colour = |name: &str| {
                let from = scheme.split_once(&format!("--{name}: ")).unwrap().1;
                &from[..7]
            };
            for ground in ["paper", "card"].map(colour) {
                for text in ["ink", "soft", "strong"].map(colour) {
                    assert!(contrast(text, ground) >= 4.5, "{text} on {ground}");
                }
                for series in series::ALL {
                    let mark = colour(series.class());
                    assert!(contrast(mark, ground) >= 3.0, "{mark} on {ground}");
                }
            }
        }
    }
}
