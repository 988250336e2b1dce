//! Pieces of a page.

/// Text as it stands in HTML, also in a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// JSON as it stands in a script element, which nothing in it can end.
pub(super) fn json_in_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// A part of the page under a heading of the second rank; nothing if its body is empty.
pub(super) fn section(id: &str, title: &str, lead: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    let lead = paragraph(lead);
    format!(
        "<section id=\"{id}\">\n<h2>{}</h2>\n{lead}{body}</section>\n",
        escape(title)
    )
}

/// Charts under a heading of the third rank, if they have one; nothing if there are none.
pub(super) fn group(title: &str, cards: &str) -> String {
    group_of(title, "cards", cards)
}

/// The same, with another look.
pub(super) fn group_of(title: &str, class: &str, cards: &str) -> String {
    if cards.is_empty() {
        return String::new();
    }
    let heading = if title.is_empty() {
        String::new()
    } else {
        format!("<h3>{}</h3>\n", escape(title))
    };
    format!("{heading}<div class=\"{class}\">\n{cards}</div>\n")
}

/// Charts that are seen when their heading is opened; nothing if there are none.
pub(super) fn folded_group(title: &str, cards: &str) -> String {
    if cards.is_empty() {
        return String::new();
    }
    format!(
        "<details class=more><summary>{}</summary>\n<div class=cards>\n{cards}</div>\n</details>\n",
        escape(title)
    )
}

/// A paragraph; nothing if there is no text.
pub(super) fn paragraph(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("<p>{}</p>\n", escape(text))
}

/// A list; nothing if it has no items.
pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items
        .iter()
        .map(|item| format!("<li>{}</li>\n", escape(item)))
        .collect();
    format!("<ul>\n{items}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escape("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
    }

    #[test]
    fn json_cannot_end_its_script() {
        let json = serde_json::to_string("</script><!--").unwrap();
        let safe = json_in_script(&json);
        assert!(!safe.contains('<'), "{safe}");
        let back: String = serde_json::from_str(&safe).unwrap();
        assert_eq!(back, "</script><!--");
    }
}
