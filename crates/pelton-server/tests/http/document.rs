//! The OpenAPI document.

use serde_json::{Value, json};

use crate::client::Site;

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(target) if key == "$ref" => found.push(target.to_string()),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

#[test]
fn every_route_is_described_and_every_reference_leads_somewhere() {
    let site = Site::plain();
    let document = site.get("/openapi.json").ok();
    assert_eq!(document, pelton_server::openapi_document());
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for target in found {
        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{id}", "tiny");
            let reply = if method == "get" { site.get(&path) } else { site.post(&path, &json!({})) };
            assert!(reply.status != 404 && reply.status != 405, "{method} {path}: {}", reply.text());
        }
    }
    let chat = &document["components"]["schemas"]["ChatRequest"];
    assert!(chat["properties"]["temperature"]["minimum"].is_number(), "{chat}");
    assert!(
        document["components"]["schemas"]["MessagesRequest"]["required"]
            .as_array()
            .unwrap()
            .contains(&json!("max_tokens"))
    );
}
