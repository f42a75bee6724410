-- Ask the decision service about each request. If it denies the request, its response is the response to the client.

-- haproxy.cfg names the address of the service behind the name of this file.
local service = ...
if not (service or ""):match("^https?://[^/]+$") then
    error("sluicegate.lua: needs the address of the decision service, such as http://127.0.0.1:9000")
end
-- More than the deadline of the service, so that its answer comes first.
local timeout_ms = 500

-- Write a warning to the log, at most once in 10 s.
local said = -math.huge
local function warn(text)
    local now = core.now().sec
    if now - said >= 10 then
        said = now
        core.Warning("sluicegate.lua: " .. service .. " " .. text)
    end
end

local not_sent = {
    -- The client's own words about its request.
    ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true, ["x-forwarded-for"] = true,
    ["x-sluicegate-costs"] = true, ["x-sluicegate-attributes"] = true, ["sluicegate-secret"] = true,
    -- They belong to the connection or to the body. The service gets neither.
    ["connection"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true,
    ["transfer-encoding"] = true, ["upgrade"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true,
}
-- Fields of an allowed request, and the variables by which haproxy.cfg adds them to the response.
local shown = {
    ["ratelimit-policy"] = "txn.sluicegate_policy",
    ["ratelimit"] = "txn.sluicegate_limit",
    ["sluicegate-degraded"] = "txn.sluicegate_degraded",
}

-- What only this script needs, and what HAProxy sets itself.
local kept_back = {
    ["sluicegate-status"] = true, ["sluicegate-problem"] = true, ["content-length"] = true, ["date"] = true,
    ["connection"] = true, ["keep-alive"] = true,
}

-- Return a copy of header fields, whose values HAProxy counts from 0, with values counted from 1.
local function copied(fields, left_out)
    local copy = {}
    for name, values in pairs(fields) do
        if not left_out[name] then
            copy[name] = {}
            for index, value in pairs(values) do
                copy[name][index + 1] = value
            end
        end
    end
    return copy
end

core.register_action("sluicegate", { "http-req" }, function(txn)
    local fields = copied(txn.http:req_get_headers(), not_sent)
    fields["x-forwarded-method"] = { txn.f:method() }
    fields["x-forwarded-uri"] = { txn.f:pathq() }
    fields["x-forwarded-for"] = { txn.f:src() }
    -- If the service wants a secret:
    -- fields["sluicegate-secret"] = { "the secret" }

    local url = service .. "/v1/check403"
    local answer = core.httpclient():get { url = url, headers = fields, timeout = timeout_ms }
    local length = answer.headers and answer.headers["content-length"]
    if answer.status == 200 and length and length[0] == "0" then
        txn:set_var("txn.sluicegate", "allowed")
        for name, variable in pairs(shown) do
            if answer.headers[name] then
                txn:set_var(variable, answer.headers[name][0])
            end
        end
        return
    end

    -- Only the service sets these fields. HAProxy makes a response of its own if the service is gone.
    local status = answer.headers and (answer.headers["sluicegate-status"]
        or answer.headers["sluicegate-denial"] and { [0] = answer.status })
    if status then
        local reply = txn:reply { status = tonumber(status[0]), body = answer.body }
        for name, values in pairs(copied(answer.headers, kept_back)) do
            for _, value in ipairs(values) do
                reply:add_header(name, value)
            end
        end
        txn:done(reply)
    elseif answer.status and answer.status >= 400 and answer.status < 500 then
        -- The service could not read the request. It is there, so this is no permission.
        txn:done(txn:reply { status = answer.status })
    elseif answer.status and answer.status >= 100 and answer.status < 400 then
        warn("is no decision service. It answers " .. answer.status)
        txn:done(txn:reply { status = 500 })
    else
        warn("does not answer, so that requests are not decided")
    end
end)
