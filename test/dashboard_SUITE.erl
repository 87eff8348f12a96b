%%% The dashboard: its options, its HTTP in the face of all kinds of clients, and its page in Chromium.
-module(dashboard_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [echoes/2, eval/1, exec/1, wait_until/2, wait_until/3]).

-define(PATIENCE_MS, 20000).
-define(GET(Path), ["GET ", Path, " HTTP/1.1\r\nHost: localhost\r\n\r\n"]).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [without_the_application_there_is_none, {group, life}, {group, http}, {group, page}].

groups() ->
    [
        {life, [], [
            options_are_checked,
            it_is_on_the_loopback_address_unless_told_otherwise,
            there_is_one_of_it,
            a_port_in_use_is_an_error,
            it_stops_and_starts_again
        ]},
        {http, [], [
            the_page_is_self_contained,
            metrics_are_those_of_the_function,
            data_is_json,
            data_has_only_what_the_page_does_not_have,
            other_paths_and_methods_are_refused,
            an_answer_to_head_has_no_body,
            what_is_not_http_is_refused,
            a_head_has_bounds,
            hosts_of_strangers_are_refused,
            more_hosts_can_be_served,
            any_address_is_served_on_all_of_them,
            many_requests_come_over_one_connection,
            requests_may_come_in_one_piece_or_in_many,
            a_client_that_only_reads_on_is_answered,
            http_1_0_ends_with_the_answer,
            a_client_that_dribbles_is_cut_off,
            a_client_that_does_not_read_costs_little,
            figures_that_do_not_come_are_an_error,
            it_survives_the_death_of_its_parts,
            a_stuck_callback_elsewhere_does_not_hold_it_up
        ]},
        {page, [], [
            the_page_shows_live_figures,
            the_page_lists_names_as_they_are,
            the_page_can_be_used_with_the_keyboard,
            the_page_fits_dark_rooms_and_small_screens,
            the_page_finds_a_dashboard_that_was_started_again
        ]}
    ].

init_per_group(page, Config) ->
    %% The programs are there: script/bootstrap test installs them. Without them this fails.
    reactor_case:start(#{}),
    ok = py:add_path(unicode:characters_to_binary(filename:join(root(code:lib_dir(py_reactor)), "test/python"))),
    Config;
init_per_group(_Group, Config) ->
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

root(Folder) ->
    case filelib:is_regular(filename:join(Folder, "CONTRIBUTING.md")) of
        true -> Folder;
        false when Folder =/= "/" -> root(filename:dirname(Folder))
    end.

init_per_testcase(without_the_application_there_is_none, Config) ->
    reactor_case:stop(),
    Config;
init_per_testcase(_Case, Config) ->
    reactor_case:start(#{contexts => 2}),
    reactor_case:begin_case(Config).

end_per_testcase(without_the_application_there_is_none, _Config) ->
    ok;
end_per_testcase(_Case, Config) ->
    {ok, _} = py:eval(<<"(m := __import__('sys').modules.get('browser')) and m.stop()">>),
    _ = py_reactor:stop_dashboard(),
    _ = [py_reactor:stop_listener(Name) || Name <- py_reactor:which_listeners()],
    reactor_case:end_case(Config).

%%--------------------------------------------------------------------------------------------------
%% Its life

options_are_checked(_Config) ->
    [
        ?assertEqual({error, {bad_option, Key}}, py_reactor:start_dashboard(#{Key => Value}))
     || {Key, Value} <- [
            {port, -1},
            {port, 65536},
            {port, "8080"},
            {ip, "127.0.0.1"},
            {ip, {1, 2, 3}},
            {hosts, "localhost"},
            {hosts, [<<"a host">>]},
            {hosts, [<<"example.org:80">>]},
            {hosts, [<<>>]},
            {hosts, [<<255>>]},
            {hosts, [example]},
            {colour, blue}
        ]
    ],
    ?assertError(badarg, py_reactor:start_dashboard([])),
    ?assertEqual(undefined, whereis(py_reactor_dashboard)).

it_is_on_the_loopback_address_unless_told_otherwise(_Config) ->
    {ok, _} = py_reactor:start_dashboard(#{}),
    ?assertMatch(
        #{ip := {127, 0, 0, 1}, port := Port, status := running} when Port > 0,
        py_reactor:listener_info(py_reactor_dashboard)
    ),
    ok = py_reactor:stop_dashboard(),
    {ok, _} = py_reactor:start_dashboard(#{ip => {127, 0, 0, 2}}),
    #{ip := {127, 0, 0, 2}, port := Port} = py_reactor:listener_info(py_reactor_dashboard),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 2}, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Client, "GET / HTTP/1.1\r\nHost: 127.0.0.2:80\r\n\r\n"),
    ?assertMatch({200, _, _}, response(Client)),
    ok = gen_tcp:close(Client).

there_is_one_of_it(_Config) ->
    {ok, Pid} = py_reactor:start_dashboard(#{}),
    ?assertEqual({error, {already_started, Pid}}, py_reactor:start_dashboard(#{})),
    ?assert(is_process_alive(Pid)).

a_port_in_use_is_an_error(Config) ->
    {ok, Port} = inet:port(?config(listener, Config)),
    ?assertEqual({error, eaddrinuse}, py_reactor:start_dashboard(#{port => Port})),
    ?assertEqual(undefined, whereis(py_reactor_dashboard)),
    {ok, _} = py_reactor:start_dashboard(#{}).

it_stops_and_starts_again(_Config) ->
    Port = start(#{}),
    Open = connect(Port),
    ok = gen_tcp:send(Open, "GET / HTTP/1.1\r\nHo"),
    ok = py_reactor:stop_dashboard(),
    <<>> = reactor_case:await_closed(Open),
    ?assertEqual({error, not_found}, py_reactor:stop_dashboard()),
    [
        begin
            {ok, _} = py_reactor:start_dashboard(#{port => Port}),
            ?assertMatch({200, _, _}, get(Port, "/data")),
            ok = py_reactor:stop_dashboard()
        end
     || _ <- lists:seq(1, 20)
    ].

without_the_application_there_is_none(_Config) ->
    ?assertEqual({error, not_running}, py_reactor:start_dashboard(#{})),
    ?assertEqual({error, not_found}, py_reactor:stop_dashboard()),
    %% It ends with the application, whatever its clients do.
    reactor_case:start(#{}),
    Client = connect(start(#{})),
    ok = gen_tcp:send(Client, ?GET("/data")),
    {200, _, _} = response(Client),
    reactor_case:stop(),
    <<>> = reactor_case:await_closed(Client),
    ?assertEqual({error, not_running}, py_reactor:start_dashboard(#{})).

%%--------------------------------------------------------------------------------------------------
%% HTTP

the_page_is_self_contained(_Config) ->
    {200, Fields, Page} = get(start(#{}), "/"),
    ?assertEqual(<<"text/html; charset=utf-8">>, maps:get(<<"content-type">>, Fields)),
    #{<<"content-security-policy">> := Policy} = Fields,
    [?assertNotEqual(nomatch, binary:match(Policy, Part)) || Part <- [
        <<"default-src 'none'">>, <<"script-src 'sha256-">>, <<"style-src 'sha256-">>,
        <<"connect-src 'self'">>, <<"frame-ancestors 'none'">>
    ]],
    ?assertEqual(nomatch, binary:match(Policy, <<"unsafe">>)),
    ?assertMatch(#{<<"x-content-type-options">> := <<"nosniff">>, <<"cache-control">> := <<"no-store">>}, Fields),
    %% Nothing comes from elsewhere: the name space of SVG is only a name.
    {match, Links} = re:run(Page, "https?://[^'\" ]+", [global, {capture, first, binary}]),
    ?assertEqual([[<<"http://www.w3.org/2000/svg">>]], lists:usort(Links)),
    ?assertEqual(nomatch, re:run(Page, "@PYTHON@|<script src|<link rel=.stylesheet")).

metrics_are_those_of_the_function(_Config) ->
    Port = start(#{}),
    {200, Fields, Metrics} = get(Port, "/metrics"),
    ?assertEqual(<<"text/plain; version=0.0.4; charset=utf-8">>, maps:get(<<"content-type">>, Fields)),
    Names = fun(Text) ->
        {match, Found} = re:run(Text, "^# TYPE .*$", [global, multiline, {capture, first, binary}]),
        Found
    end,
    ?assertEqual(Names(py_reactor:metrics()), Names(Metrics)).

data_is_json(_Config) ->
    {ok, _} = py_reactor:start_listener('a "quoted"\\\n\x{1f600}name', #{ip => loopback, max_connections => infinity}),
    Port = start(#{}),
    {200, #{<<"content-type">> := <<"application/json">>}, Body} = get(Port, "/data"),
    #{<<"now">> := Now, <<"samples">> := [[1, _, Contexts, Listeners] | _]} = json(Body),
    ?assertMatch(#{<<"node">> := _, <<"otp">> := _, <<"uptime_ms">> := _, <<"interval_ms">> := 1000}, Now),
    ?assertEqual([<<"1">>, <<"2">>, <<"py_reactor_dashboard_context">>], lists:sort(maps:keys(Contexts))),
    Name = unicode:characters_to_binary(io_lib:format("~0tp", ['a "quoted"\\\n\x{1f600}name'])),
    ?assert(is_map_key(Name, Listeners)),
    [Described] = [L || #{<<"name">> := N} = L <- maps:get(<<"listeners">>, Now), N =:= Name],
    ?assertMatch(
        #{<<"status">> := <<"running">>, <<"protocol">> := <<"default">>, <<"max_connections">> := none}, Described
    ).

data_has_only_what_the_page_does_not_have(_Config) ->
    Port = start(#{}),
    #{<<"now">> := #{<<"run">> := Run}} = data(Port, "/data"),
    HasThree = fun() ->
        #{<<"samples">> := Samples} = data(Port, "/data"),
        length(Samples) >= 3
    end,
    wait_until("there are three samples", HasThree),
    #{<<"samples">> := [[3 | _] | _]} = data(Port, ["/data?run=", Run, "&since=2"]),
    %% Those of another run are no samples of this one.
    #{<<"samples">> := [[1 | _], [2 | _], [3 | _] | _]} = data(Port, "/data?run=1&since=2"),
    #{<<"samples">> := []} = data(Port, ["/data?run=", Run, "&since=999999999999999"]),
    [
        ?assertMatch({400, _, _}, get(Port, ["/data?", Query]))
     || Query <- ["since=1", ["run=", Run, "&since="], ["run=", Run, "&since=-1"], "run=a&since=b", "x"]
    ].

other_paths_and_methods_are_refused(_Config) ->
    Port = start(#{}),
    [?assertMatch({404, _, _}, get(Port, P)) || P <- ["/x", "/metrics/", "/..", "//", "/%2e", "/Metrics"]],
    [
        ?assertMatch({405, #{<<"allow">> := <<"GET, HEAD">>}, _}, ask(Port, [Method, " / HTTP/1.1\r\nHost: h\r\n\r\n"]))
     || Method <- ["POST", "PUT", "DELETE", "OPTIONS", "get", "CONNECT"]
    ].

an_answer_to_head_has_no_body(_Config) ->
    Port = start(#{}),
    {200, #{<<"content-length">> := Length}, Page} = get(Port, "/"),
    ?assertEqual(byte_size(Page), binary_to_integer(Length)),
    Client = connect(Port),
    ok = gen_tcp:send(Client, "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    Answer = reactor_case:await_closed(Client),
    [Head, <<>>] = binary:split(Answer, <<"\r\n\r\n">>),
    ?assertNotEqual(nomatch, binary:match(Head, <<"Content-Length: ", Length/binary>>)).

what_is_not_http_is_refused(_Config) ->
    Port = start(#{}),
    [
        begin
            Client = connect(Port),
            ok = gen_tcp:send(Client, Garbage),
            ?assertMatch({match, _}, re:run(reactor_case:await_closed(Client), "^HTTP/1.1 (400|505) "))
        end
     || Garbage <- [
            <<22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3>>,
            "\n",
            "hello\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            crypto:strong_rand_bytes(100000)
        ]
    ],
    %% What comes behind a refused request is not looked at.
    Smuggler = connect(Port),
    ok = gen_tcp:send(Smuggler, ["GET / HTTP/9.9\r\n\r\n", ?GET("/"), ?GET("/metrics")]),
    Answer = reactor_case:await_closed(Smuggler),
    ?assertEqual(1, length(binary:matches(Answer, <<"HTTP/1.1 ">>))).

a_head_has_bounds(_Config) ->
    Port = start(#{}),
    Large = ["GET / HTTP/1.1\r\nHost: localhost\r\nX: ", binary:copy(<<"x">>, 9000), "\r\n\r\n"],
    ?assertMatch({431, _, _}, ask(Port, Large)),
    Many = ["GET / HTTP/1.1\r\nHost: localhost\r\n", [<<"X: y\r\n">> || _ <- lists:seq(1, 100)], "\r\n"],
    ?assertMatch({431, _, _}, ask(Port, Many)).

hosts_of_strangers_are_refused(_Config) ->
    Port = start(#{}),
    With = fun(Host) -> element(1, ask(Port, ["GET /data HTTP/1.1\r\nHost: ", Host, "\r\n\r\n"])) end,
    Ok = ["localhost", "LocalHost:1234", "127.0.0.1", "127.0.0.1:80", "[::1]:80", "my.localhost"],
    ?assertEqual([200 || _ <- Ok], [With(Host) || Host <- Ok]),
    Strangers = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "notlocalhost", "[::2]"],
    ?assertEqual([403 || _ <- Strangers], [With(Host) || Host <- Strangers]),
    ?assertMatch({403, _, _}, ask(Port, "GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n")).

more_hosts_can_be_served(_Config) ->
    Port = start(#{hosts => ["Dash.Example", <<"[::2]">>]}),
    With = fun(Host) -> element(1, ask(Port, ["GET /data HTTP/1.1\r\nHost: ", Host, "\r\n\r\n"])) end,
    ?assertEqual([200, 200, 200, 403], [With(H) || H <- ["dash.example:443", "DASH.example", "[::2]", "evil.example"]]).

any_address_is_served_on_all_of_them(_Config) ->
    Port = start(#{ip => any}),
    With = fun(Host) -> element(1, ask(Port, ["GET /data HTTP/1.1\r\nHost: ", Host, "\r\n\r\n"])) end,
    ?assertEqual([200, 200, 403], [With(H) || H <- ["10.0.0.1:80", "[2001:db8::1]", "evil.example"]]).

many_requests_come_over_one_connection(_Config) ->
    Client = connect(start(#{})),
    [
        begin
            ok = gen_tcp:send(Client, ?GET(Path)),
            {200, #{<<"connection">> := <<"keep-alive">>}, _} = response(Client)
        end
     || _ <- lists:seq(1, 50), Path <- ["/", "/data", "/metrics"]
    ],
    ok = gen_tcp:close(Client).

requests_may_come_in_one_piece_or_in_many(_Config) ->
    Client = connect(start(#{})),
    Paths = lists:append(lists:duplicate(30, ["/data", "/", "/none", "/metrics"])),
    Kinds = #{
        "/" => <<"text/html; charset=utf-8">>,
        "/data" => <<"application/json">>,
        "/none" => <<"text/plain; charset=utf-8">>,
        "/metrics" => <<"text/plain; version=0.0.4; charset=utf-8">>
    },
    Answers = fun() -> [begin {_, #{<<"content-type">> := Kind}, _} = response(Client), Kind end || _ <- Paths] end,
    Wanted = [maps:get(Path, Kinds) || Path <- Paths],
    ok = gen_tcp:send(Client, [?GET(Path) || Path <- Paths]),
    ?assertEqual(Wanted, Answers()),
    ok = inet:setopts(Client, [{nodelay, true}]),
    [ok = gen_tcp:send(Client, <<Byte>>) || <<Byte>> <= iolist_to_binary([?GET(Path) || Path <- Paths])],
    ?assertEqual(Wanted, Answers()),
    ok = gen_tcp:close(Client).

a_client_that_only_reads_on_is_answered(_Config) ->
    Client = connect(start(#{})),
    ok = gen_tcp:send(Client, [?GET("/metrics"), ?GET("/data"), ?GET("/")]),
    ok = gen_tcp:shutdown(Client, write),
    [?assertMatch({200, _, _}, response(Client)) || _ <- [metrics, data, page]],
    ?assertEqual({error, closed}, gen_tcp:recv(Client, 0, ?PATIENCE_MS)),
    ok = gen_tcp:close(Client).

http_1_0_ends_with_the_answer(_Config) ->
    Client = connect(start(#{})),
    ok = gen_tcp:send(Client, "GET /metrics HTTP/1.0\r\n\r\n"),
    ?assertMatch({200, #{<<"connection">> := <<"close">>}, _}, response(Client)),
    ?assertEqual({error, closed}, gen_tcp:recv(Client, 0, ?PATIENCE_MS)),
    ok = gen_tcp:close(Client).

%% Time is the subject: a request may take ten seconds, however its bytes are spread.
a_client_that_dribbles_is_cut_off(_Config) ->
    Client = connect(start(#{})),
    Dribble = fun Next(<<Byte, Left/binary>>) ->
        _ = gen_tcp:send(Client, <<Byte>>),
        case gen_tcp:recv(Client, 0, 500) of
            {error, timeout} -> Next(Left);
            {ok, Answer} -> Answer
        end
    end,
    Answer = Dribble(iolist_to_binary(["GET / HTTP/1.1\r\nX: ", binary:copy(<<"x">>, 1000)])),
    ?assertMatch(<<"HTTP/1.1 408 ", _/binary>>, Answer),
    _ = reactor_case:await_closed(Client).

%% It gets one answer after the other, and the next is only made when the last one is sent.
a_client_that_does_not_read_costs_little(_Config) ->
    Port = start(#{}),
    {200, _, Page} = get(Port, "/"),
    Client = connect(Port),
    Requests = 1000,
    Sender = spawn_link(fun() -> ok = gen_tcp:send(Client, [?GET("/") || _ <- lists:seq(1, Requests)]) end),
    Held = fun() ->
        eval(
            "max(len(p.write_buffer) + len(p._input) for p in __import__('erlang.reactor',"
            " fromlist=['x'])._registry.protocols.values() if type(p).__name__ == 'Dashboard')"
        )
    end,
    wait_until("the kernel takes no more", fun() -> Held() > 0 andalso Held() =:= Held() end),
    [?assert(Held() < 2 * byte_size(Page) + 2 * 122880) || _ <- lists:seq(1, 100)],
    [?assertMatch({200, _, Page}, response(Client)) || _ <- lists:seq(1, Requests)],
    wait_until("all is sent", fun() -> not is_process_alive(Sender) end),
    ok = gen_tcp:close(Client).

%% Time is the subject: figures may take five seconds.
figures_that_do_not_come_are_an_error(_Config) ->
    Port = start(#{}),
    Client = connect(Port),
    ok = sys:suspend(py_reactor_dashboard),
    ok = gen_tcp:send(Client, ?GET("/data")),
    ?assertMatch({503, #{<<"connection">> := <<"close">>}, _}, response(Client)),
    ok = gen_tcp:close(Client),
    %% The answer that comes after all is nobody's.
    ok = sys:resume(py_reactor_dashboard),
    ?assertMatch({200, _, _}, get(Port, "/data")),
    ?assertEqual([], reactor_case:logged(#{level => error})).

it_survives_the_death_of_its_parts(_Config) ->
    Port = start(#{}),
    Kill = fun(Name) ->
        Pid = whereis(Name),
        exit(Pid, kill),
        wait_until("it is back", fun() ->
            is_pid(whereis(Name)) andalso whereis(Name) =/= Pid andalso
                py_reactor:get_port(py_reactor_dashboard) =:= Port andalso answers(Port)
        end)
    end,
    [Kill(Name) || Name <- [py_reactor_dashboard, py_reactor_dashboard_context]].

a_stuck_callback_elsewhere_does_not_hold_it_up(Config) ->
    Port = start(#{}),
    ok = exec(
        "import threading\n"
        "class Stuck(reactor_case.Counted):\n"
        "    gate = threading.Event()\n"
        "    def data_received(self, data):\n"
        "        self.gate.wait()\n"
        "reactor.set_protocol_factory(Stuck)"
    ),
    Client = reactor_case:open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "x"),
    Busy = fun() ->
        #{<<"now">> := #{<<"contexts">> := Contexts}} = data(Port, "/data"),
        [Ms || #{<<"busy_ms">> := Ms} <- Contexts, Ms > 50] =/= []
    end,
    wait_until("the stuck context is seen", Busy),
    ok = exec("Stuck.gate.set()"),
    ok = gen_tcp:close(Client).

%%--------------------------------------------------------------------------------------------------
%% The page, in Chromium

the_page_shows_live_figures(_Config) ->
    Client = listen(echo_service),
    Port = start(#{}),
    ok = open_page(Port, #{}),
    Load = spawn_link(fun() -> receive go -> echo_for_ever(Client) end end),
    ok = gen_tcp:controlling_process(Client, Load),
    Load ! go,
    Text = fun(Selector) -> run(["return document.querySelector('", Selector, "').textContent"]) end,
    wait_until("it is live", fun() -> Text("#live") =:= <<"Live">> end),
    %% Each plot has the listener's line, and beside it the table with its figures.
    [
        wait_until(["the plot of ", Plot], fun() ->
            run([
                "const plot = document.querySelector('#plot-", Plot, "');",
                "const path = plot.querySelector('path.series');",
                "return !!path && path.getTotalLength() > 1 && plot.querySelector('tbody th').textContent"
            ]) =:= <<"echo_service">>
        end)
     || Plot <- ["connections", "requests", "time", "share"]
    ],
    ?assertEqual(
        <<"1">>, run("return document.querySelector('#plot-connections tbody td').textContent")
    ),
    wait_until("requests are counted", fun() ->
        run("return parseFloat(document.querySelectorAll('#tiles dd')[1].textContent) > 0")
    end),
    ?assertMatch({match, _}, re:run(Text("#listeners tbody tr"), "^echo_service.*running127\\.0\\.0\\.1")),
    %% By context, and with the dashboard itself.
    ok = click("label:has(input[value=contexts])"),
    ?assertEqual([<<"1">>, <<"2">>], series()),
    ok = click("#own"),
    ?assertEqual([<<"1">>, <<"2">>, <<"py_reactor_dashboard_context">>], series()),
    %% It can be stopped and goes on.
    ok = click("#pause"),
    ?assertEqual(<<"Paused">>, Text("#live")),
    ok = click("#pause"),
    wait_until("it goes on", fun() -> Text("#live") =:= <<"Live">> end),
    ?assertEqual([], py(complaints, [])),
    unlink(Load),
    exit(Load, kill).

the_page_lists_names_as_they_are(_Config) ->
    Evil = '<img src=x onerror=alert(1)></td><script>document.title="evil"</script>',
    Client = listen(Evil),
    ok = open_page(start(#{}), #{}),
    Name = unicode:characters_to_binary(io_lib:format("~0tp", [Evil])),
    wait_until("it is listed", fun() -> lists:member(Name, series()) end),
    ?assertEqual(Name, run("return document.querySelector('#listeners tbody th').textContent")),
    ?assertEqual(0, run("return document.querySelectorAll('img').length")),
    ?assertEqual(<<"py_reactor">>, run("return document.title")),
    ?assertEqual([], py(complaints, [])),
    ok = gen_tcp:close(Client).

the_page_can_be_used_with_the_keyboard(_Config) ->
    Client = listen(echo_service),
    ok = open_page(start(#{}), #{}),
    wait_until("it is drawn", fun() -> series() =:= [<<"echo_service">>] end),
    Head = fun() -> run("return document.querySelector('#plot-connections thead th:nth-child(2)').textContent") end,
    ?assertEqual(<<"now">>, Head()),
    %% U+E012 is the arrow to the left, U+E00C is Escape.
    none = py(press, [<<"#plot-connections svg">>, <<16#e012/utf8>>]),
    ?assertEqual(<<"1 s ago">>, Head()),
    %% All plots look at the same time.
    ?assertEqual(4, run("return document.querySelectorAll('svg .cross').length")),
    none = py(press, [<<"#plot-connections svg">>, <<16#e00c/utf8>>]),
    ?assertEqual(<<"now">>, Head()),
    %% What a reader of the screen needs.
    ?assertEqual(true, run("return [...document.querySelectorAll('#plots > figure > svg')].every(s =>"
        " s.getAttribute('role') === 'img' && /echo_service/.test(s.getAttribute('aria-label')))")),
    ?assertEqual(true, run("return [...document.querySelectorAll('table')].every(t => t.caption &&"
        " [...t.querySelectorAll('th')].every(h => h.scope))")),
    ?assertEqual(true, run("return [...document.querySelectorAll('input')].every(i => i.labels.length === 1)")),
    ok = gen_tcp:close(Client).

the_page_fits_dark_rooms_and_small_screens(_Config) ->
    Port = start(#{}),
    Background = "return getComputedStyle(document.body).backgroundColor",
    ok = open_page(Port, #{dark => true}),
    ?assertEqual(<<"rgb(18, 23, 28)">>, run(Background)),
    ok = open_page(Port, #{dark => false}),
    ?assertEqual(<<"rgb(244, 246, 248)">>, run(Background)),
    none = py(resize, [500, 900]),
    %% Nothing sticks out: only the tables scroll, each by itself.
    wait_until("it fits", fun() ->
        run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    end).

the_page_finds_a_dashboard_that_was_started_again(_Config) ->
    Port = start(#{}),
    ok = open_page(Port, #{}),
    Live = fun() -> run("return document.querySelector('#live').className") end,
    wait_until("it is live", Live, <<"good">>),
    ok = py_reactor:stop_dashboard(),
    wait_until("it says so", Live, <<"bad">>),
    {ok, _} = py_reactor:start_dashboard(#{port => Port}),
    wait_until("it is live again", Live, <<"good">>).

%%--------------------------------------------------------------------------------------------------

start(Options) ->
    {ok, _} = py_reactor:start_dashboard(Options),
    py_reactor:get_port(py_reactor_dashboard).

listen(Name) ->
    {ok, _} = py_reactor:start_listener(Name, #{ip => loopback, protocol => {reactor_case, 'Echo'}}),
    connect(py_reactor:get_port(Name)).

connect(Port) ->
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    Client.

get(Port, Path) ->
    ask(Port, ?GET(Path)).

ask(Port, Request) ->
    Client = connect(Port),
    ok = gen_tcp:send(Client, Request),
    Answer = response(Client),
    ok = gen_tcp:close(Client),
    Answer.

answers(Port) ->
    try get(Port, "/data") of
        {200, _, _} -> true
    catch
        error:{badmatch, _} -> false
    end.

%% {Status, Fields, Body}
response(Client) ->
    {ok, {http_response, {1, 1}, Status, _}} = line(Client, http_bin),
    Fields = fields(Client, #{}),
    ok = inet:setopts(Client, [{packet, raw}]),
    {ok, Body} =
        case maps:get(<<"content-length">>, Fields) of
            <<"0">> -> {ok, <<>>};
            Length -> gen_tcp:recv(Client, binary_to_integer(Length), ?PATIENCE_MS)
        end,
    {Status, Fields, Body}.

fields(Client, Fields) ->
    case line(Client, httph_bin) of
        {ok, {http_header, _, _, Name, Value}} -> fields(Client, Fields#{string:lowercase(Name) => Value});
        {ok, http_eoh} -> Fields
    end.

line(Client, Packet) ->
    ok = inet:setopts(Client, [{packet, Packet}]),
    gen_tcp:recv(Client, 0, ?PATIENCE_MS).

data(Port, Path) ->
    {200, _, Body} = get(Port, Path),
    json(Body).

json(Body) ->
    {ok, Value} = py:eval(<<"__import__('json').loads(text)">>, #{text => Body}),
    Value.

echo_for_ever(Client) ->
    ok = echoes(Client, <<"hello">>),
    timer:sleep(5),
    echo_for_ever(Client).

open_page(Port, Options) ->
    none = py(start, [maps:get(dark, Options, false), 1280, 1000]),
    none = py(go, [iolist_to_binary(["http://127.0.0.1:", integer_to_list(Port), "/"])]),
    ok.

series() ->
    run("return [...document.querySelectorAll('#plot-connections tbody th')].map(h => h.textContent)").

click(Selector) ->
    none = py(click, [list_to_binary(Selector)]),
    ok.

run(Script) ->
    py(run, [unicode:characters_to_binary(Script)]).

py(Function, Arguments) ->
    {ok, Value} = py:call(browser, Function, Arguments, #{}, 60000),
    Value.
