-- For wrk: posts the image file that IMAGE names as multipart/form-data and prints one RESULT line.
--   IMAGE=a.png wrk -t1 -c32 -d5s -s benchmarks/post_image.lua http://127.0.0.1:3000            -> /predict_image
--   IMAGE=a.png BATCH=8 wrk -t1 -c4 -d5s -s benchmarks/post_image.lua http://127.0.0.1:3000     -> /predict_batch, 8 parts
local count = tonumber(os.getenv("BATCH") or "1")
local single = os.getenv("BATCH") == nil
local file = assert(io.open(assert(os.getenv("IMAGE"), "set IMAGE to the path of an image file"), "rb"))
local image = file:read("*a")
file:close()

local boundary = "rayapp-benchmark-boundary"
local field = single and "image" or "images"
local part = table.concat({
  "--" .. boundary,
  'Content-Disposition: form-data; name="' .. field .. '"; filename="image.png"',
  "Content-Type: image/png",
  "",
  image,
  "",
}, "\r\n")
local body = part:rep(count) .. "--" .. boundary .. "--\r\n"
local headers = { ["Content-Type"] = "multipart/form-data; boundary=" .. boundary }
local built

function init(_)
  built = wrk.format("POST", single and "/predict_image" or "/predict_batch", headers, body)
end

function request()
  return built  -- the same bytes each time: the client must cost little, it shares the cores with the server
end

function done(summary, latency, _)
  local e = summary.errors
  print(string.format(
    "RESULT requests=%d seconds=%.3f p50_ms=%.3f p90_ms=%.3f p99_ms=%.3f non2xx=%d socket=%d timeout=%d",
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
    e.status, e.connect + e.read + e.write, e.timeout
  ))
end
