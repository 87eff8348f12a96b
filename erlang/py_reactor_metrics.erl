%%% What contexts and listeners count, as Prometheus reads it: text format 0.0.4.
%%%
%%% A connection is counted by its context and by its listener, so each figure comes in two families,
%%% `py_reactor_context_*' and `py_reactor_listener_*': adding up over one of them counts everything
%%% once. No figure is asked from Python, so a callback that holds the GIL delays nothing here.
-module(py_reactor_metrics).

%% API
-export([metrics/0, render/1, figures/0]).

%% For the dashboard
-export([text/1, version/0]).

-export_type([figures/0]).

-type stats() :: #{atom() => non_neg_integer() | #{atom() => non_neg_integer()}}.
-type listener() :: #{
    name := term(), pid := pid(), status := atom(), address := binary(), protocol := binary()
}.
-type figures() :: #{
    contexts := [{#{context := py_reactor_pool:label(), pid := pid()}, stats()}],
    listeners := [{listener(), stats()}]
}.

%% @doc All metrics of this node, in the text format of Prometheus.
-spec metrics() -> binary().
metrics() ->
    render(figures()).

%% @doc What there is to be told of every context and every listener just now.
-spec figures() -> figures().
figures() ->
    #{contexts => lists:append([context(C) || C <- py_reactor_pool:list()]), listeners => listeners()}.

context({Pid, Handle, Label, _Since}) ->
    try
        [{#{context => Label, pid => Pid}, py_nif:context_stats(Handle)}]
    catch
        %% The application has just stopped.
        error:_ -> []
    end.

listeners() ->
    lists:append([listener(Name) || Name <- py_reactor:which_listeners()]).

%% One that has stopped meanwhile is left out.
listener(Name) ->
    case py_reactor:listener_info(Name) of
        #{pid := Pid, status := Status} = Info ->
            Metadata = #{
                name => Name,
                pid => Pid,
                status => Status,
                address => address(Info),
                protocol => protocol(Info)
            },
            [{Metadata, maps:with([max_connections, closed | keys()] -- of_contexts(), Info)}];
        {error, _} ->
            []
    end.

address(#{local := Path}) when is_binary(Path) -> Path;
address(#{ip := Ip, port := Port}) when tuple_size(Ip) =:= 8 -> binary(["[", inet:ntoa(Ip), "]"], Port);
address(#{ip := Ip, port := Port}) -> binary(inet:ntoa(Ip), Port).

binary(Host, Port) ->
    iolist_to_binary([Host, $:, integer_to_list(Port)]).

protocol(#{protocol := {Module, Name, _Kwargs}}) ->
    unicode:characters_to_binary(io_lib:format("~ts.~ts", [Module, Name]));
protocol(_) ->
    <<"default">>.

%% Key, name without its prefix, type, how its value is written, help.
table() ->
    [
        {accepted, "connections_accepted_total", counter, one, "Connections that were accepted."},
        {active, "connections", gauge, one, "Connections that are open now."},
        {refused, "connections_refused_total", counter, one, "Connections that were turned away."},
        {closed_by, "connections_closed_total", counter, reasons,
            "Connections that have ended, by reason."},
        {bytes_in, "received_bytes_total", counter, one, "Bytes read from connections."},
        {bytes_out, "sent_bytes_total", counter, one, "Bytes that the kernel took."},
        {reads, "reads_total", counter, one,
            "Times that data came in and was given to a protocol: requests, as a rule."},
        {callbacks, "callbacks_total", counter, one, "Calls into protocols."},
        {callback_us, "callback_seconds_total", counter, microseconds,
            "Time spent in calls into protocols."},
        {longest_callback_us, "callback_longest_seconds", gauge, microseconds,
            "The longest call into a protocol so far."},
        {exceptions, "callback_exceptions_total", counter, one, "Calls into protocols that failed."},
        {timeouts, "timeouts_total", counter, one, "Timeouts of connections that ran out."},
        {drops, "pushed_messages_dropped_total", counter, one,
            "Pushed messages that a slow consumer did not get."},
        {queue_depth, "queue_depth", gauge, one, "Requests that wait for the worker."},
        {parked, "connections_parked", gauge, one, "Silent connections that the BEAM watches now."},
        {parkings, "parkings_total", counter, one, "Times that a silent connection was parked."},
        {wakes, "wakes_total", counter, one, "Times that a parked connection was woken."},
        {busy_ms, "turn_seconds", gauge, milliseconds,
            "How long the worker has been in its present turn; 0 while it sleeps."}
    ].

keys() ->
    [Key || {Key, _, _, _, _} <- table()].

%% A listener has no worker.
of_contexts() ->
    [queue_depth, parked, parkings, wakes, busy_ms].

%% @doc Figures in the text format of Prometheus.
-spec render(figures()) -> binary().
render(#{contexts := Contexts, listeners := Listeners}) ->
    ByContext = [{[{"context", text(C)}], Stats} || {#{context := C}, Stats} <- Contexts],
    ByListener = [{[{"listener", text(L)}], Stats} || {#{name := L}, Stats} <- Listeners],
    Status = [
        {[{"listener", text(L)}, {"status", text(Wanted)}], truth(Status =:= Wanted)}
     || {#{name := L, status := Status}, _} <- Listeners, Wanted <- [running, suspended, draining]
    ],
    Limits = [
        {Labels, integer_to_list(Most)}
     || {Labels, #{max_connections := Most}} <- ByListener, is_integer(Most)
    ],
    unicode:characters_to_binary([
        family("py_reactor_info", gauge, "The versions of what runs; always 1.", [{versions(), "1"}]),
        families("py_reactor_context_", ByContext),
        families("py_reactor_listener_", ByListener),
        family("py_reactor_listener_max_connections", gauge,
            "How many connections a listener may have.", Limits),
        family("py_reactor_listener_status", gauge, "1 for the status that a listener has.", Status)
    ]).

families(Prefix, Sources) ->
    [
        family(Prefix ++ Name, Type, Help, [
            Sample
         || {Labels, #{Key := Value}} <- with_key(Key, Sources), Sample <- samples(As, Labels, Value)
        ])
     || {Key, Name, Type, As, Help} <- table()
    ].

with_key(Key, Sources) ->
    [Source || {_, Stats} = Source <- Sources, is_map_key(Key, Stats)].

samples(one, Labels, Value) ->
    [{Labels, integer_to_list(Value)}];
samples(microseconds, Labels, Value) ->
    [{Labels, seconds(Value, 1000000, 6)}];
samples(milliseconds, Labels, Value) ->
    [{Labels, seconds(Value, 1000, 3)}];
samples(reasons, Labels, Reasons) ->
    [
        {Labels ++ [{"reason", text(Reason)}], integer_to_list(Count)}
     || {Reason, Count} <- lists:sort(maps:to_list(Reasons))
    ].

%% Exactly, and not by way of a float.
seconds(Value, Parts, Digits) ->
    io_lib:format("~b.~*..0b", [Value div Parts, Digits, Value rem Parts]).

truth(true) -> "1";
truth(false) -> "0".

family(_Name, _Type, _Help, []) ->
    [];
family(Name, Type, Help, Samples) ->
    [
        ["# HELP ", Name, $\s, Help, $\n],
        ["# TYPE ", Name, $\s, atom_to_list(Type), $\n],
        [[Name, ${, lists:join($,, [label(L) || L <- Labels]), $}, $\s, Value, $\n] || {Labels, Value} <- Samples]
    ].

label({Name, Value}) ->
    [Name, "=\"", [escaped(C) || C <- Value], $"].

escaped($\\) -> "\\\\";
escaped($") -> "\\\"";
escaped($\n) -> "\\n";
escaped(C) -> C.

%% @doc A name as Erlang writes it, so that two names never give one label: `1' is the first context of the pool,
%% `'1'' a process of that name.
-spec text(term()) -> string().
text(Name) ->
    unicode:characters_to_list(io_lib:format("~0tp", [Name])).

versions() ->
    [{"version", binary_to_list(version())}, {"otp", erlang:system_info(otp_release)}].

%% @doc The version of this application.
-spec version() -> binary().
version() ->
    _ = application:load(py_reactor),
    {ok, Version} = application:get_key(py_reactor, vsn),
    list_to_binary(Version).
