//! The table at the end of the demonstration.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use proxy_common::abi::Family;
use serde_json::Value;

use super::request::{Frontend, Outcome};

const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

const HEADER: [&str; 10] = [
    "Service",
    "dialled from",
    "address",
    "protocol",
    "ok",
    "failed",
    "answered by",
    "packets*",
    "new flows*",
    "refused*",
];

/// Shows what became of the requests, and what the kernel counted (`beeline services -o json`).
pub(super) fn render(outcomes: &[Outcome], services: &Value) -> String {
    let mut table = Table::new();
    table
        .load_style(STYLE)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(HEADER);
    for outcome in outcomes {
        table.add_row(row(outcome, services));
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if [4, 5, 7, 8, 9].contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{}\n* of the Service port in this family, as counted by the programs in the kernel: sockets that are \
         pointed at a backend have no packets to translate",
        table.trim_fmt()
    )
}

fn row(outcome: &Outcome, services: &Value) -> [String; 10] {
    let frontend = &outcome.frontend;
    let answers: Vec<_> = outcome
        .answers
        .iter()
        .map(|(backend, count)| format!("{backend} ×{count}"))
        .collect();
    let entry = entry(services, frontend);
    let count = |name: &str| match entry.and_then(|entry| entry[name].as_u64()) {
        Some(count) => count.to_string(),
        None => "?".to_owned(),
    };
    [
        format!("{}/{}", frontend.namespace, frontend.service),
        frontend.from.to_string(),
        frontend.socket_address().to_string(),
        frontend.protocol.to_owned(),
        outcome.succeeded().to_string(),
        outcome.failed().to_string(),
        answers.join(", "),
        count("packets"),
        count("flows"),
        count("refused"),
    ]
}

/// A frontend in what `beeline services -o json` says.
fn entry<'a>(services: &'a Value, frontend: &Frontend) -> Option<&'a Value> {
    services.as_array()?.iter().find(|entry| {
        let every_address = Family::of(frontend.address).unspecified().to_string();
        let is_node_port = entry["kind"] == "node-port" && entry["address"] == every_address;
        (is_node_port || entry["address"] == frontend.address.to_string())
            && entry["port"] == frontend.port
            && entry["protocol"] == frontend.protocol
    })
}
